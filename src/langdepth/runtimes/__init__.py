"""What computes a system: torch, ONNX Runtime or OpenVINO. ``opening`` chooses; prediction uses all alike."""
