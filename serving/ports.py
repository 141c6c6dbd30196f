"""The ports that TensorFlow Serving listens on, and so does the stand-in."""

GRPC = 8500
REST = 8501
