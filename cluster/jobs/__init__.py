"""dray's work as jobs on a Ray cluster, through the HTTP API of its dashboard."""
