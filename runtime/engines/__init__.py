"""TensorRT engines: what identifies one, and how it is built. Nothing here needs PyTorch or onnx."""
