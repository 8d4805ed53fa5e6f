"""``bert-emd sweep``: a search for the options of `distill` that give the best student.

In the order in which a search uses them: `config`, `space` (what is searched), `checks` (what is refused before
anything runs), `search` (the whole job), `storage` (the study and who works on it), `work` (the loop and its
processes), `asking` (which trial comes next), `trial` (one run), `results` and `plots` (what is left behind).
"""
