"""Everything of SpineSegAI that knows 3D Slicer; the library `SpineSegAILib` knows nothing of it.

``panels`` are the sections of the panel, ``scene`` is what is kept in nodes, ``processes`` is what runs elsewhere.
Panels know nodes and processes; these know neither panels nor each other. `SpineSegAI.py`, beside this package, is what
Slicer loads; `widget`, `logic`, `parameter_node` and `self_test` are what it looks for there.
"""
