"""Small tools of all tests."""
