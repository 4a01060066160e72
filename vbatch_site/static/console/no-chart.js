// In the place of Chart.js, which Unfold's pages ask for and none of ours needs; see vbatch_site/assets.py.
