"""Everything of SpineSegAI that knows 3D Slicer; the library `SpineSegAILib` knows nothing of it."""
