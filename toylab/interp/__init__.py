"""Methods of interpretability: functions of tensors, models and taps that know nothing of tasks, steps or runs."""
