"""Core's numbers for Prometheus, read as any client reads them. Needs `vmsession[metrics]`."""
