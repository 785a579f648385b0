"""lm-evaluation-harness: tasks, settings, metrics, needles and reading data sets."""
