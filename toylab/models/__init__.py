"""Models: a frozen spec with `build(task, generator)`, and a module whose `forward(inputs, tap)` is readable."""
