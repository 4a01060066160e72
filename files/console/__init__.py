"""The console's pages about files, and the browser's way to upload them."""
