-- Prompts in one language that people would call text
--
-- The bounds are for problems in prose. Problems that are mostly formulas have a lower share of letters; what has no
-- words at all has no share of English, and is left out.
--
-- Reads `pool` (prompt, and any other columns). Gives its columns.
SELECT *
FROM pool
WHERE language_share(prompt, 'en') >= 0.9
  AND word_count(prompt) BETWEEN 3 AND 1000
  AND mean_word_len(prompt) BETWEEN 2.5 AND 10
  AND letter_share(prompt) >= 0.5
  AND coalesce(repetition_share(prompt, 4), 0) <= 0.2
