-- Problems that a model solves sometimes
--
-- The pass rate is measured: sample each prompt several times with the model that is to be trained (a stage `sample`),
-- and query that run. A problem that is always solved, or never, teaches GRPO nothing; nor does one that was tried too
-- seldom to tell.
--
-- Reads `pool` (id, and any other columns) and `rollouts`, with the reward `math`. Gives the columns of `pool`, the
-- pass rate and the name of its band.
WITH measured AS (
    SELECT prompt_id, avg(reward_math) AS pass_rate
    FROM rollouts
    GROUP BY prompt_id
    HAVING count(reward_math) >= 4
)
SELECT pool.*,
       pass_rate,
       CASE WHEN pass_rate < 0.3 THEN 'hard' WHEN pass_rate <= 0.7 THEN 'medium' ELSE 'easy' END AS difficulty
FROM measured
JOIN pool ON pool.id = measured.prompt_id
WHERE pass_rate > 0 AND pass_rate < 1
