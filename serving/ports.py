"""The default ports of TensorFlow Serving, which are also those of the stand-in."""

GRPC = 8500
REST = 8501
