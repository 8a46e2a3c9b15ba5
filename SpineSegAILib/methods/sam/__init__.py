"""SAM and MedSAM, which segment what a box or a point shows them."""
