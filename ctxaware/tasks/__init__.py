"""The task files that lm-evaluation-harness reads: data only."""
