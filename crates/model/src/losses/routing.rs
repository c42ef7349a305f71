//! What routed experts are trained with beside the other losses: that the prompt tells which experts serve, and that
//! all of them serve somebody.
//!
//! ```text
//! I(task; expert) = H(mean_t q_t) − mean_t H(q_t),   P(t) = 1 / tasks
//! L = mean over blocks of −I
//! ```
//!
//! q_t is the mean probability of each expert over the tokens of the passes under the prompt of task t. I is largest,
//! ln tasks, where tasks use different experts; unlike a balance of all experts for all tasks it asks no task to use
//! all of them (mutual information of tasks and experts: Chen et al. 2023, Mod-Squad).

use burn::tensor::Tensor;

use crate::{mix::TASKS, moe::Routing};

/// The loss of all blocks: [1]. None without routed experts.
///
/// passes: the routing of each pass, one entry a block, and the task whose prompt the pass had.
pub fn prompt_information_loss(passes: &[(Vec<Routing>, usize)]) -> Option<Tensor<1>> {
    let blocks = passes.first().map_or(0, |(routing, _)| routing.len());
    let terms: Vec<Tensor<1>> = (0..blocks)
        .filter_map(|block| {
            let used: Vec<Tensor<2>> = (0..TASKS.len())
                .filter_map(|task| mean_probability(passes, block, task))
                .collect();
            let count = used.len();
            let each = Tensor::cat(used, 0);
            let all = each.clone().mean_dim(0);
            let information = entropy(all).sum() - entropy(each).sum().div_scalar(count as f64);
            (count > 1).then(|| information.neg())
        })
        .collect();
    (!terms.is_empty()).then(|| Tensor::cat(terms, 0).mean())
}

/// q of a task: [1, experts].
fn mean_probability(
    passes: &[(Vec<Routing>, usize)],
    block: usize,
    task: usize,
) -> Option<Tensor<2>> {
    let tokens: Vec<Tensor<2>> = { passes.iter() }
        .filter(|(_, of)| *of == task)
        .map(|(routing, _)| {
            let values = routing[block].probabilities.clone();
            let [batch, count, experts] = values.dims();
            values.reshape([batch * count, experts])
        })
        .collect();
    (!tokens.is_empty()).then(|| Tensor::cat(tokens, 0).mean_dim(0))
}

/// −p ln p of each value.
fn entropy(p: Tensor<2>) -> Tensor<2> {
    (p.clone() * p.clamp_min(1e-12).log()).neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn pass(row: [f32; 3], task: usize) -> (Vec<Routing>, usize) {
        let tensor = Tensor::<3>::from_data([[row, row]], &Device::flex());
        let routing = Routing {
            probabilities: tensor.clone(),
            chosen: tensor.clone(),
            weights: tensor,
        };
        (vec![routing], task)
    }

    #[test]
    fn it_is_lowest_where_each_task_has_its_expert() {
        let value = |rows: [[f32; 3]; 3]| -> f32 {
            let passes = [0, 1, 2].map(|task| pass(rows[task], task));
            prompt_information_loss(&passes).unwrap().into_scalar()
        };
        let apart = value([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
        assert!((apart + 3.0_f32.ln()).abs() < 1e-5, "{apart}");
        let alike = value([[0.2, 0.5, 0.3]; 3]);
        assert!(alike.abs() < 1e-6, "{alike}");
        assert!(prompt_information_loss(&[(Vec::new(), 0)]).is_none());
    }
}
