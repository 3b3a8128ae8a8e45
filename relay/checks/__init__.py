"""`relay check`: looks for what would hurt a relay in production, and says what to change."""
