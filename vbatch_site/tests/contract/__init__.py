"""The OpenAI contract, item by item, against a live server; a test's name carries its item's number."""
