"""An encoder to numbers: zero-shot, linear probe, few-shot, retrieval, distribution shift and bias probes over suites of tasks."""
