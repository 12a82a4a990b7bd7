-- One of each prompt
--
-- Keeps one row of those whose prompts are the same but for capitals, blanks and punctuation: the one with the
-- smallest id. Write `text_hash(prompt)` to keep prompts apart that differ in a single character. Rows without a prompt
-- are kept.
--
-- Reads `pool` (id, prompt, and any other columns). Gives its columns, in the order of the hash.
SELECT * EXCEPT (hash, before)
FROM (
    SELECT *, lag(hash) OVER (ORDER BY hash NULLS LAST, id) AS before
    FROM (SELECT *, text_hash(normalised(prompt)) AS hash FROM pool)
)
WHERE before IS NULL OR before IS DISTINCT FROM hash
