-- One of each cluster of prompts that are nearly the same
--
-- A prompt of forty words of which one was replaced still has 0.85 of its trigrams in common with the other, one of
-- twenty words 0.71. Look at some pairs before you choose a threshold: `SELECT id, duplicate_of, similarity, prompt`
-- from the same call. With `keep => column` the row with the greatest value of a column is kept, instead of the one
-- with the smallest id. A row that is less alike to the kept one than the threshold, but joined to it by a chain of
-- others, is kept here.
--
-- Reads `pool` (id, prompt, and any other columns). Gives its columns.
SELECT * EXCEPT (duplicate_of, similarity)
FROM mark_duplicates((SELECT * FROM pool), id, prompt, 0.7)
WHERE duplicate_of IS NULL OR similarity < 0.7
