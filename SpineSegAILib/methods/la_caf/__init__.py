"""LA-CAF: a 3D network whose class heads are generated from text embeddings; trains on half-labeled cases."""
