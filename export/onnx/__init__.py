"""The ONNX backend: a folder that ONNX Runtime GenAI opens."""
