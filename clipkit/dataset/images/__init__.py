"""Images: fetched politely, judged by rules, stored."""
