"""HTTP around the routes: bodies, limits, errors, headers and middleware."""
