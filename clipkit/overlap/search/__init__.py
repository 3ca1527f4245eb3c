"""The nearest training pictures of each test picture, over shards and ranks, and on which scale they are similar."""
