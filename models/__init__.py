"""The networks and the 3D factorization of 3DFaceFill (Dey and Boddeti, WACV 2022, arXiv 2110.10395)."""
