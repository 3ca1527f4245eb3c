"""Test sets as their authors publish them: one reader for each distribution."""
