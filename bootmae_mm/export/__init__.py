"""Export of encoders: timm, Hugging Face, mmpretrain, ONNX."""
