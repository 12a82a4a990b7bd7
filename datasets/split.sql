-- A training set and a held-out set
--
-- Which side a row is on depends on its prompt alone: rows that are added later change nothing, and prompts that
-- differ in punctuation only are on one side. For sides that near duplicates don't straddle either, take
-- `coalesce(duplicate_of, id)` from `mark_duplicates` in place of the hash of the prompt. Another salt than 'split'
-- gives another split.
--
-- Reads `pool` (prompt, and any columns but `split`). Gives its columns and `split`.
SELECT *,
       CASE WHEN hash_share(text_hash(normalised(prompt)), 'split') < 0.95 THEN 'train' ELSE 'test' END AS split
FROM pool
