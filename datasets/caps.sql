-- At most so many of each prompt and of each source
--
-- Keeps 4 completions of a prompt, and 50,000 of a source: first the best of every prompt, then every second best.
-- Which of equal ones is kept is up to a hash, so it is neither the shortest nor the first, but the same each time.
--
-- Reads `candidates` (id, prompt_id, source, reward, and any other columns). Gives its columns.
WITH of_prompts AS (
    SELECT *,
           row_number() OVER (PARTITION BY prompt_id ORDER BY reward DESC, hash_share(id, 'caps'), id) AS of_prompt
    FROM candidates
),
of_sources AS (
    SELECT *,
           row_number() OVER (PARTITION BY source ORDER BY of_prompt, hash_share(id, 'caps'), id) AS of_source
    FROM of_prompts
    WHERE of_prompt <= 4
)
SELECT * EXCEPT (of_prompt, of_source)
FROM of_sources
WHERE of_source <= 50000
