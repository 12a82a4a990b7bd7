-- Prompts that share nothing with an evaluation set
--
-- Leaves out what has 13 words in a row that are in a text of the evaluation set too, as is common practice since
-- GPT-3. Look at what goes before it does: `SELECT contaminated_by, shared_ngram, prompt` from the same call. If all
-- texts of a benchmark begin with one instruction, cut that off in the second query, or every prompt that repeats it
-- goes. Several benchmarks are one query with UNION ALL.
--
-- Reads `pool` (prompt, and any other columns) and `evaluation` (id, prompt). Gives the columns of `pool`.
SELECT * EXCEPT (contaminated_by, shared_ngram)
FROM mark_contaminated(
    (SELECT * FROM pool), prompt,
    (SELECT id, prompt FROM evaluation),
    n => 13
)
WHERE contaminated_by IS NULL
