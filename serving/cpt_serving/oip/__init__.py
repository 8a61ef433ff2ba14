"""The Open Inference Protocol, version 2, independent of HTTP and gRPC: from requests to answers."""
