"""Forms that are folders for other programs: ONNX, torchao, bitsandbytes, GPTQ, AWQ, and fewer layers."""
