"""Regions by geometry from a keypoint network: eyewear, face and shoes."""
