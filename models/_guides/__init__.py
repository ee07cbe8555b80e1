"""What the guides of stories share: networks, families, coordinates."""
