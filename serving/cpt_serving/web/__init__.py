"""What HTTP needs around the routes: bodies, limits, errors, headers, and the layers around every request."""
