"""The Open Inference Protocol, version 2, apart from HTTP and gRPC: from requests to answers."""
