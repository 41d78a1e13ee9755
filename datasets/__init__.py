"""Faces as training and evaluation data: alignment, detection, image folders, holes and the 3DMM definition."""
