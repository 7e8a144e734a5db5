"""Claims that need more than the figures a run reports: functions that the index names, one module a paper."""
