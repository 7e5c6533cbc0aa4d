"""python -m toylab"""

import sys

from toylab.cli import main

sys.exit(main())
