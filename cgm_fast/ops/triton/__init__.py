"""What the Triton implementations of all ops share: packing, mathematics, tiles, launches."""
