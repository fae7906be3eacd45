"""Training of classifiers: data sets in, ONNX members under `engines/` out. Never imported by the service."""
