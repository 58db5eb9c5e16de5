"""What came out, on the screen: tables and pictures."""
