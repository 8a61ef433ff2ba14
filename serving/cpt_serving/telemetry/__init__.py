"""What the server tells about itself: metrics, access log, its own log, traces."""
