-- One of each prompt
--
-- Keeps one row of those whose prompts are the same but for capitals, blanks and punctuation: the one with the
-- smallest id. Write `text_hash(prompt)` to keep prompts apart that differ in a single character.
--
-- Reads `pool` (id, prompt, and any other columns). Gives its columns.
SELECT * EXCEPT (copy)
FROM (
    SELECT *, row_number() OVER (PARTITION BY text_hash(normalised(prompt)) ORDER BY id) AS copy
    FROM pool
)
WHERE copy = 1
