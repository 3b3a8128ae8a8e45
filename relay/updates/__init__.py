"""The update job: watches upstreams, and appends what is new in them exactly once."""
