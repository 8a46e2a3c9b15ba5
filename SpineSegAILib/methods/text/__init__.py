"""Text encoders and banks of embedded sentences. Encoders are needed to make a bank, never to segment."""
