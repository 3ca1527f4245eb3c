"""What the evaluated model says about test pictures, and how any part of them is scored."""
